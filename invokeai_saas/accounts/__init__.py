"""Accounts: who somebody is, how they prove it, what they may do, and how all of it is taken back."""
