"""How much of a label is left in a network: probes of its layers, trained on held-out parts.

``division`` chooses the segments and divides them into parts, ``representation`` runs the networks,
``classifiers`` trains and tests probes, ``code_length`` measures online code lengths,
``similarity`` compares two networks, and ``probing`` puts them together.
"""

__all__: list[str] = []
