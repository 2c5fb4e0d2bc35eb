"""Run sparse models whose experts stay on disk, with a few of them in memory."""
