"""Exchanges: the ways in which updates travel between ranks.

Training and the doctor import it. A new exchange is a subclass of `interface.Exchange` in a module here and a row in
``config/exchange_traits.py``; see ``docs/adding-an-exchange.md``.
"""
