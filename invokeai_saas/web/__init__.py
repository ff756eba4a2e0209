"""What a browser is served besides InvokeAI's interface: the pages of accounts, and the script that keeps a login alive."""
