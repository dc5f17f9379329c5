"""Servers in processes of their own, which are killed or write the same rows; real sockets, real databases."""
