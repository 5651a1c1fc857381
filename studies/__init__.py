"""Everything built on pipeline, model and cache: jobs, plans, checks, the demo and reports."""

__all__: list[str] = []
