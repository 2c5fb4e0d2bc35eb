from .hosts.spans.head_spans import HeadSpans as HeadSpans
from .hosts.spans.head_spans import attach_spans as attach_spans
from .hosts.spans.head_spans import detach_spans as detach_spans
from .hosts.spans.spans import Spans as Spans
from .hosts.spans.spans import load_spans as load_spans
from .methods.moa import MoA as MoA
from .methods.moa import choose_spans as choose_spans
