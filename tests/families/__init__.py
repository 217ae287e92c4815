"""Models of the families that people ship, as exporters write them, and what optc makes of each."""
