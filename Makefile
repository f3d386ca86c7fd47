# Short names for what the README and CONTRIBUTING say.
.PHONY: test lint docs nightly
test:
	pytest
lint:
	ruff check src tests bench examples && ruff format --check src tests bench examples && mypy && lint-imports
docs:
	python docs/generate.py
	sphinx-build -W -b html docs docs/_build
nightly:
	python bench/nightly.py
