"""What rewrites a graph, and what runs it: rules and their driver, pipelines as text, levels as data, the pass manager."""
