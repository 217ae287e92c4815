"""The graph: loading and saving, facts about values, patterns, the one door for changes, verifying, targets.

Nothing here knows of passes, backends or the command line.
"""
