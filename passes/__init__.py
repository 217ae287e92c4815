"""What rewrites a graph, and what runs it: rules, pipelines as text, levels as data, the pass manager."""
