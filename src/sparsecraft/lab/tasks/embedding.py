"""Encoders judged by retrieval: each query has one document that it should find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.lab.tasks import cache, pretrained
from sparsecraft.lab.tasks.base import (
    SPLITS,
    Batch,
    Progress,
    Scores,
    Split,
    Task,
    check_finite,
    check_positive,
    check_split,
    evaluating,
    inputs_of,
    to_device,
)
from sparsecraft.lab.tasks.passages import RetrievalCorpus

CUTOFF = 10
BATCH = 32
"""Texts encoded at once: the fastest of 16 to 128 on two cores."""


class RetrievalTask(Task):
    """An encoder scored by nDCG@10 over a corpus, and by its cosine to the dense embeddings.

    Args:
        name: The task's name.
        about: Two sentences on the data.
        model_dir: A Hugging Face encoder directory.
        corpus: Documents, queries and training text.
        max_length: Texts are cut after this many tokens.
    """

    metric = f"nDCG@{CUTOFF}"
    higher_is_better = True
    kind = "embedding"

    def __init__(
        self,
        *,
        name: str,
        about: str,
        model_dir: Path,
        corpus: RetrievalCorpus,
        max_length: int = 64,
    ) -> None:
        check_positive(max_length=max_length)
        self.name = name
        self.model_dir = model_dir
        self.corpus = corpus
        self.max_length = max_length
        self.pooling = pretrained.pooling_of(model_dir)
        self.description = f"{about} Texts are cut after {max_length} tokens."
        settings = {"task": name, "max_length": max_length, "pooling": self.pooling}
        self.fingerprint = cache.fingerprint(
            settings, corpus.fingerprint, cache.directory_digest(model_dir)
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model directory.

        Raises:
            InvalidValue: If it has no padding token: the model is then no text encoder.
        """
        tokenizer = pretrained.load_tokenizer(self.model_dir)
        if tokenizer.pad_token_id is None:
            raise InvalidValue(
                f"The tokenizer of {self.model_dir} has no padding token, so texts of different "
                "length cannot share a batch. Is this a causal language model? Then use "
                "'causal-text'."
            )
        return tokenizer

    def load_model(self) -> nn.Module:
        """Returns a fresh dense encoder."""
        return pretrained.load_model(self.model_dir, "embedding")

    def save_extras(self, directory: Path) -> None:
        """Writes the tokenizer, and the pooling files that sentence-transformers reads."""
        self.tokenizer.save_pretrained(directory)
        names = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
        for name in (*names, "config_sentence_transformers.json"):
            if (self.model_dir / name).is_file():
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((self.model_dir / name).read_bytes())

    def calibration(self, max_tokens: int, seed: int) -> list[Batch]:
        """Returns padded batches of training text, at most `max_tokens` real tokens in all."""
        check_positive(max_tokens=max_tokens)
        chosen: list[list[int]] = []
        left = max_tokens
        for index in self._shuffled(seed, "calibration"):
            ids = self._training_ids([index])[0][:left]
            chosen.append(ids)
            left -= len(ids)
            if left == 0:
                break
        chosen.sort(key=len)  # neighbours of equal length need the least padding
        return [self._pad(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)]

    def training_batches(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yields padded batches of training text without end, without labels."""
        check_positive(batch_size=batch_size)
        epoch = 0
        while True:
            shuffled = self._shuffled(seed, "training", epoch)
            for start in range(0, max(1, len(shuffled) - batch_size + 1), batch_size):
                yield self._pad(self._training_ids(shuffled[start : start + batch_size]))
            epoch += 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Raises: this text has no labels.

        Raises:
            InvalidValue: Always.
        """
        raise InvalidValue(
            f"{self.name} has no labels to train on: distil instead, matching task.outputs of the "
            "sparse model to those of the dense one."
        )

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (texts, size) embeddings of length one."""
        inputs = to_device(inputs_of(batch), model)
        hidden = model(**inputs).last_hidden_state
        return torch.nn.functional.normalize(
            pool(hidden, inputs["attention_mask"], self.pooling), dim=-1
        )

    def example_input(self, batch_size: int) -> Batch:
        """Returns the first documents of the index as one padded batch."""
        check_positive(batch_size=batch_size)
        ids = self._document_ids
        return self._pad([ids[i % len(ids)] for i in range(batch_size)])

    def evaluate(self, model: nn.Module, split: Split, progress: Progress | None = None) -> Scores:
        """Returns nDCG@10 by query; encodes the documents and the queries of this split."""
        check_split(split)
        return self._evaluate(model, (split,), progress)[split]

    def evaluate_both(
        self, model: nn.Module, progress: Progress | None = None
    ) -> dict[Split, Scores]:
        """Returns the scores of both splits; the documents are encoded once."""
        return self._evaluate(model, SPLITS, progress)

    def encode(
        self, model: nn.Module, token_ids: Sequence[list[int]], progress: Progress | None = None
    ) -> Tensor:
        """Returns (texts, size) normalised embeddings, in the order given.

        Args:
            model: The encoder.
            token_ids: One list of tokens for each text.
            progress: Called after each batch.
        """
        by_length = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
        found: list[Tensor] = []
        with evaluating(model):
            for start in range(0, len(by_length), BATCH):
                batch = self._pad([token_ids[i] for i in by_length[start : start + BATCH]])
                found.append(self.outputs(model, batch).float().cpu())
                if progress:
                    progress(min(start + BATCH, len(by_length)), len(by_length))
        embeddings = torch.cat(found)
        return embeddings[torch.tensor(by_length).argsort()].clone()

    @cached_property
    def dense_embeddings(self) -> Tensor:
        """(documents, size) embeddings of the dense model, computed once and kept on disk."""

        def build(folder: Path) -> None:
            embeddings = self.encode(self.load_model(), self._document_ids)
            np.save(folder / "documents.npy", embeddings.numpy())

        folder = cache.cached(f"{self.name}-dense-{self.fingerprint}", build)
        return torch.from_numpy(np.load(folder / "documents.npy"))

    def _evaluate(
        self, model: nn.Module, splits: Sequence[Split], progress: Progress | None
    ) -> dict[Split, Scores]:
        texts = list(self._document_ids)
        for split in splits:
            texts += self._query_ids[split]
        embeddings = self.encode(model, texts, progress)
        check_finite(embeddings, self.name)
        documents, rest = embeddings.tensor_split([len(self._document_ids)])
        cosine = float((documents * self.dense_embeddings).sum(-1).mean())
        scores = {}
        for split in splits:
            queries, rest = rest.tensor_split([len(self._query_ids[split])])
            relevant = torch.tensor(self.corpus.queries[split].relevant)
            gains = ndcg(queries @ documents.T, relevant)
            scores[split] = self.scores(gains.numpy(), {"cosine": cosine})
        return scores

    @cached_property
    def _document_ids(self) -> list[list[int]]:
        return self._tokenise(self.corpus.documents)

    @cached_property
    def _query_ids(self) -> dict[Split, list[list[int]]]:
        return {split: self._tokenise(self.corpus.queries[split].texts) for split in SPLITS}

    def _training_ids(self, indices: Sequence[int]) -> list[list[int]]:
        return self._tokenise([self.corpus.training[index] for index in indices])

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        return encoded["input_ids"]

    def _pad(self, token_ids: Sequence[list[int]]) -> Batch:
        longest = max(map(len, token_ids))
        ids = torch.full((len(token_ids), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _shuffled(self, seed: int, *labels: object) -> list[int]:
        draw = generator(seed, self.name, *labels)
        return torch.randperm(len(self.corpus.training), generator=draw).tolist()


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Returns one vector for each text.

    Args:
        hidden: (texts, tokens, size) last hidden states.
        attention_mask: (texts, tokens), 1 on real tokens.
        pooling: "mean" over the real tokens, or "cls" for the first one.
    """
    if pooling == "cls":
        return hidden[:, 0]
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def ndcg(similarity: Tensor, relevant: Tensor, cutoff: int = CUTOFF) -> Tensor:
    """Returns nDCG at the cutoff for queries with one relevant document each.

    Documents that tie with the relevant one count as ranked before it: an encoder that maps every
    text to one point then scores zero, as it should.

    Args:
        similarity: (queries, documents).
        relevant: (queries,) index of the relevant document.
        cutoff: Ranks beyond it gain nothing.

    Example:
        >>> ndcg(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]), torch.tensor([0, 1, 0]))
        tensor([1.0000, 0.6309, 0.6309], dtype=torch.float64)
    """
    score = similarity.gather(1, relevant.unsqueeze(1))
    rank = (similarity >= score).sum(1).double()
    return torch.where(rank <= cutoff, 1 / torch.log2(1 + rank), 0.0)
