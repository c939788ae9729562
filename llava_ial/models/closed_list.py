"""How probable a model finds each sentence of a list, all of them at once.

The sentences are laid out as a tree of tokens: what they begin with alike is computed once. One pass of the model over
the tree, in which each token sees its own ancestors alone, yields the probability of every token of every sentence.
Two distributions over the list come out of it:

    ranked       the sentence's likelihood under the model, normalised over the list
    constrained  at every token only those count that go on to a sentence of the list (a decoder held to the list)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlavaForConditionalGeneration

from llava_ial.models.greedy import continue_prefixes
from llava_ial.models.shared_prefix import Prefixes

# Tokens of the tree that go through the model together; a larger tree goes in parts.
_TOKENS_AT_A_TIME = 1024


@dataclass(frozen=True)
class ChoiceScores:
    """Log probabilities over a list, ``(C,)`` each and normalised, and the walk of a decoder held to the list.

    Attributes:
        ranked, constrained: See the module's docstring.
        walked: The sentence that the likeliest permitted token, step by step, leads to.
    """

    ranked: torch.Tensor
    constrained: torch.Tensor
    walked: int


@dataclass(frozen=True)
class _Part:
    """Tokens that go through the model together: their places in the tree and who sees whom, ``(N, N)``."""

    nodes: torch.Tensor
    is_seen: torch.Tensor


class TokenTree:
    """Sentences as a tree of tokens.

    Args:
        sentences: Token ids, end mark included; all different.

    Raises:
        ValueError: Two are equal, or one is the beginning of another (the end mark is missing).
    """

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []  # -1: first token
        self.depths: list[int] = []
        self.leaves: list[int] = []
        children: dict[tuple[int, int], int] = {}
        for sentence in sentences:
            node = -1
            for depth, token in enumerate(sentence):
                if (node, token) not in children:
                    children[node, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(node)
                    self.depths.append(depth)
                node = children[node, token]
            self.leaves.append(node)
        self.inner = sorted(set(self.parents) - {-1})
        if len(set(self.leaves)) < len(self.leaves) or set(self.leaves) & set(self.inner):
            raise ValueError("two sentences of the list are one, or one is the beginning of another")
        self.parts = [self._part(nodes) for nodes in self._paths_in_parts()]

    def _paths_in_parts(self) -> list[list[int]]:
        """Inner nodes in lists of limited length, each with all its ancestors."""
        parts: list[list[int]] = []
        part: set[int] = set()
        for node in self.inner:
            path = self._path(node)
            if part and len(part | path) > _TOKENS_AT_A_TIME:
                parts.append(sorted(part))
                part = set()
            part |= path
        return [*parts, sorted(part)] if part else parts

    def _path(self, node: int) -> set[int]:
        found = set()
        while node >= 0:
            found.add(node)
            node = self.parents[node]
        return found

    def _part(self, nodes: list[int]) -> _Part:
        """A parent is always made before its children, so it stands before them."""
        place = {node: i for i, node in enumerate(nodes)}
        is_seen = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for i, node in enumerate(nodes):
            if self.parents[node] >= 0:
                is_seen[i] = is_seen[place[self.parents[node]]]
            is_seen[i, i] = True
        return _Part(torch.tensor(nodes), is_seen)


@torch.no_grad()
def score_choices(
    model: LlavaForConditionalGeneration, prefixes: Prefixes, row: int, question: Sequence[int], tree: TokenTree
) -> ChoiceScores:
    """Scores every sentence of a list as the answer to a question about a photo.

    Args:
        model: In evaluation mode.
        prefixes: Of ``encode_prefixes``.
        row: Which of them.
        question: Token ids of the prompt behind the prefix.
        tree: The sentences.
    """
    parents, tokens = torch.tensor(tree.parents), torch.tensor(tree.tokens)
    room = len(question) + max((len(part.nodes) for part in tree.parts), default=0)
    cache = continue_prefixes(prefixes, [row], room=room)
    device, before = model.device, prefixes.length + len(question)
    embed = model.get_input_embeddings()
    output = model(
        inputs_embeds=embed(torch.tensor([list(question)], device=device)),
        position_ids=torch.arange(prefixes.length, before, device=device)[None],
        past_key_values=cache,
        logits_to_keep=1,
    )
    # Of every node: its logit, and the log of the sum over all tokens that might have stood in its place.
    logits, totals = torch.empty(len(tokens)), torch.empty(len(tokens))
    _fill(
        logits,
        totals,
        parents == -1,
        output.logits[0, [-1]].float(),
        torch.zeros(len(tokens), dtype=torch.long),
        tokens,
    )
    for part in tree.parts:
        size = len(part.nodes)
        mask = torch.zeros(1, 1, size, before + size, dtype=model.dtype, device=device)
        mask[0, 0, :, before:].masked_fill_(~part.is_seen.to(device), torch.finfo(model.dtype).min)
        output = model(
            inputs_embeds=embed(tokens[part.nodes].to(device)[None]),
            attention_mask=mask,
            position_ids=(before + torch.tensor(tree.depths)[part.nodes]).to(device)[None],
            past_key_values=cache,
        )
        for layer in cache.layers:
            layer.crop(-size)
        place = torch.full((len(tokens),), -1)
        place[part.nodes] = torch.arange(size)
        is_child = (parents >= 0) & (place[parents.clamp(min=0)] >= 0)
        _fill(logits, totals, is_child, output.logits[0].float(), place[parents.clamp(min=0)], tokens)
    return _as_scores(logits, totals, tree)


def _fill(
    logits: torch.Tensor,
    totals: torch.Tensor,
    which: torch.Tensor,
    found: torch.Tensor,
    row_of: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Takes the logits of some nodes from what the model expects after their parents, ``found (N, V)``."""
    rows = row_of[which].to(found.device)
    logits[which] = found[rows, tokens[which].to(found.device)].cpu()
    totals[which] = found.logsumexp(dim=1)[rows].cpu()


def _as_scores(logits: torch.Tensor, totals: torch.Tensor, tree: TokenTree) -> ChoiceScores:
    parents = torch.tensor(tree.parents)
    siblings = parents + 1  # the root's children in place 0
    highest = torch.full((len(parents) + 1,), -torch.inf).scatter_reduce(0, siblings, logits, "amax")
    shares = torch.zeros(len(parents) + 1).scatter_add(0, siblings, (logits - highest[siblings]).exp())
    permitted = highest[siblings] + shares[siblings].log()
    free, held = (logits - totals).tolist(), (logits - permitted).tolist()
    best: dict[int, int] = {}
    values = logits.tolist()
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            free[node] += free[parent]
            held[node] += held[parent]
        if parent not in best or values[node] > values[best[parent]]:
            best[parent] = node
    node = best[-1]
    while node in best:
        node = best[node]
    leaves = torch.tensor(tree.leaves)
    return ChoiceScores(
        torch.tensor(free)[leaves].log_softmax(dim=0),
        torch.tensor(held)[leaves].log_softmax(dim=0),
        tree.leaves.index(node),
    )
