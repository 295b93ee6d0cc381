"""Ways to look at a recording: timeline, text, figure and the notebook's rich output."""
