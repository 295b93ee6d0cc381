"""The privileged side: standard library and bcc only, run by the distribution's Python."""
