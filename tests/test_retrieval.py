import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes, street_ranks, sub_street_ranks


def brute_force(scores: list[list[float]], true_class: list[int], streets: list[int], k: int) -> tuple[float, float]:
    """Sort the candidates by hand, whoever is as good as the right one before it, and look at the first k."""
    sub_street, street = 0, 0
    for row, truth in zip(scores, true_class, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c == truth))
        sub_street += truth in order[:k]
        by_street = sorted(range(len(row)), key=lambda c: (-row[c], streets[c] == streets[truth]))
        street += any(streets[c] == streets[truth] for c in by_street[:k])
    return sub_street / len(scores), street / len(scores)


@given(st.data(), st.integers(1, 6), st.integers(1, 8))
def test_metrics_equal_sorting_by_hand_with_ties(data, photos, candidates):
    # Few values, so that ties are the rule.
    values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=candidates, max_size=candidates)
    scores = data.draw(st.lists(values, min_size=photos, max_size=photos))
    truth = data.draw(st.lists(st.integers(0, candidates - 1), min_size=photos, max_size=photos))
    streets = data.draw(st.lists(st.integers(0, 2), min_size=candidates, max_size=candidates))
    ranks = sub_street_ranks(torch.tensor(scores), torch.tensor(truth))
    of_street = street_ranks(torch.tensor(scores), torch.tensor(truth), torch.tensor(streets))
    metrics = retrieval_metrics(ranks, of_street, top_ks=(1, 2, 5))
    for k in (1, 2, 5):
        assert (metrics[f"SSA@{k}"], metrics[f"SA@{k}"]) == brute_force(scores, truth, streets, k)
        assert metrics[f"SSA@{k}"] <= metrics[f"SA@{k}"]
    assert metrics["num_photos"] == photos


def test_saying_the_same_of_every_address_is_right_about_none():
    ranks = sub_street_ranks(torch.zeros(4, 10), torch.arange(4))
    assert retrieval_metrics(ranks, ranks)["SSA@5"] == 0


def test_street_classes_number_streets_by_name_and_neighbourhood():
    keys = [("Elm", "North"), ("Elm", "South"), ("Elm", "North"), ("Oak", "North")]
    assert street_classes(keys).tolist() == [0, 1, 0, 2]
