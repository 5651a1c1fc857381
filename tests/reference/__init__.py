"""Slow implementations written from the formulas; the product never imports them."""
