"""Operators: one module an operator, its public function on top."""
