"""Datasets in and out: `records` reads any known file, `export` writes for any known consumer."""

from factory.formats.card import Card
from factory.formats.layouts import Kind
from factory.formats.read import records
from factory.formats.write import export

__all__ = ["Card", "Kind", "export", "records"]
