"""Areas next to adaptation, each on its own: search, recommending, codecs, coding, memory."""
