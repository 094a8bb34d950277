# The first command after git clone is `make demo` or `make test`; either makes .venv by itself.
# A Python 3.11 or 3.12 is found by name; name another one with `make PYTHON=/path/to/python3.12 demo`.

PYTHON ?= $(shell for name in python3.12 python3.11 python3; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test integration check install clean constraints help

help:
	@echo "make demo     synthetic images, a small network, the pipeline, a report: minutes, no download but packages"
	@echo "make test     every test that needs no server"
	@echo "make integration  jobs on real servers: Flink, Prism, Cloud Storage; needs Java, Maven and Go, fetches some once"
	@echo "make check    lint, format and types"
	@echo "make install  only the virtual environment .venv"
	@echo "make clean    remove .venv and workspace"

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "crackscan needs Python 3.11 or 3.12: install one, or give make PYTHON=PATH"; exit 2; }
	@echo "installing into $(VENV) with $(PYTHON); the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

demo: $(INSTALLED)
	rm -rf workspace/demo
	$(RUN) -m jobs.prepare --source synthetic:2000 --out workspace/demo/data
	$(RUN) -m jobs.train --recipe small --data workspace/demo/data --out workspace/demo/bundle
	$(RUN) -m jobs.infer --input workspace/demo/data/test --model workspace/demo/bundle --out workspace/demo/run
	$(RUN) -m jobs.report workspace/demo/run
	$(RUN) -m jobs.query workspace/demo/run "SELECT predicted_class, count(*) AS images, round(avg(score), 4) AS mean_score FROM predictions GROUP BY ALL ORDER BY ALL"
	@echo "open workspace/demo/run/report/report.html"

test: $(INSTALLED)
	$(RUN) -m pytest

integration: $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gcp]'
	$(RUN) -m pytest tests/integration

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# backports.strenum 1.3 is not for Python 3.11 although its metadata lets the resolver think so; pip refuses it.
constraints: $(INSTALLED)
	$(RUN) -m pip install --quiet uv
	echo 'backports.strenum<1.3' > $(VENV)/limits.txt
	{ echo '# Exact versions for Python 3.11 and 3.12, written by make constraints.'; \
	$(RUN) -m uv pip compile setup.py --all-extras --universal --python-version 3.11 --no-header --no-annotate \
	--quiet -c $(VENV)/limits.txt; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) workspace
