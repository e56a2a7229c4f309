"""Shared test helpers: fake servers, small corpora, configs of small runs, random trees and test oracles."""
