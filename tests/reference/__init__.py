"""Slow versions written from the formulas; the product never imports them."""
