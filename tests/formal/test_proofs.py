"""Formal proofs of the blocks' rules, each with mutants that must fail."""

import pytest
from proof import missing, prove, refute

if missing():
    pytest.skip(missing(), allow_module_level=True)

from properties_queues import PROOFS as QUEUES

PROOFS = QUEUES
MUTANTS = [pytest.param(p, m, id=f"{p.name}: {m.new or 'without ' + m.old}") for p in PROOFS for m in p.mutants]
# A design that is built to read its signals, or that a mutant makes fail early, is not always elaborated by Amaranth.
pytestmark = pytest.mark.filterwarnings("ignore:.*created but never used")


@pytest.mark.parametrize("proof", PROOFS, ids=lambda p: p.name)
def test_proof_holds(proof, tmp_path):
    prove(proof, tmp_path)


@pytest.mark.parametrize(("proof", "mutant"), MUTANTS)
def test_mutant_fails(proof, mutant, tmp_path):
    refute(proof, mutant, tmp_path)
