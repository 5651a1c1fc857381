"""Figures of runs and recordings, drawn with matplotlib from plain arrays.

``panels`` draws rows of panels, and ``spectrograms`` draws spectrograms and heat maps over them.
Nothing is read from disk here.
"""
