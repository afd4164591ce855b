"""Workloads that ship with memplan; installed as the package memplan_models."""
