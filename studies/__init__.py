"""What is run with pipeline, model and cache: jobs, plans, checks, the demo, reports."""

__all__: list[str] = []
