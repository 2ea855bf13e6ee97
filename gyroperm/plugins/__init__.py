"""Gyroperm inside other pruning toolkits: a module for each, imported only when used."""
