"""Figures of runs and recordings, drawn with matplotlib from plain arrays.

``panels`` draws rows of panels, ``spectrograms`` draws spectrograms and heat maps over them, and
``embeddings`` draws segments as points. Nothing is read from disk here.
"""
