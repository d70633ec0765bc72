"""Tests of capture on real servers."""
