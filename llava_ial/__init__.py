"""LLaVA-IAL: from a street photo, without GPS, to the address in words.

Importing this package costs nothing; import the module that you need, for example
``from llava_ial.inference import AddressPredictor``.
"""

__version__ = "0.1.0"
