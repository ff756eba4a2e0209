"""Where files lie: one port, two stores (disk, S3), a journal in the database that keeps rows and objects together."""
