// Code and names that do not fit a line break behind a dot, a bracket, an underscore and the like, not inside a word.
for (const code of document.querySelectorAll(".md-typeset code, .md-typeset .doc-object-name")) {
  if (code.closest(".language-console")) continue // what a program prints scrolls in its frame
  const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT)
  const nodes = []
  while (texts.nextNode()) nodes.push(texts.currentNode)
  for (const node of nodes) {
    const parts = node.data.split(/(?<=[._/:=,(\[{&?+-])(?=\p{L}|$)/u)
    if (parts.length > 1 || /[._/:=,(\[{]$/.test(node.data))
      node.replaceWith(...parts.flatMap((part) => [part, document.createElement("wbr")]))
  }
}
