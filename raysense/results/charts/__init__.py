"""Frames to charts: a file each, whose function gives one Vega-Lite chart as plain data, or None for nothing to draw.

A new chart is a file here and a line in the list of `raysense.results.page.drawn`.
"""
