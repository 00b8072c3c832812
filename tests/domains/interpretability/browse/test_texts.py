"""Tokens as people read them."""

import tokenizers

from sparsecraft.domains.interpretability.browse.texts import token_text


class Pieces:
    all_special_tokens = ("[CLS]",)

    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: number for number, token in enumerate(self.tokens)}

    def convert_ids_to_tokens(self, number):
        return self.tokens[number]


def _texts(*tokens):
    text = token_text(Pieces(*tokens))
    return [text(number) for number in range(len(tokens))]


def test_word_pieces_are_joined_to_their_word():
    assert _texts("[CLS]", "walk", "##ing") == ["[CLS]", " walk", "ing"]


def test_sentencepiece_marks_and_bytes_are_what_they_stand_for():
    assert _texts("▁a", "b", "<0x41>") == [" a", "b", "A"]


def test_byte_level_tokens_are_decoded_also_where_code_has_comment_signs():
    from transformers import PreTrainedTokenizerFast

    tokens = {"Ġthe": 0, "##": 1, "Ċ": 2, "Ã©": 3}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=tokens, merges=[]))
    inner.decoder = tokenizers.decoders.ByteLevel()
    text = token_text(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert [text(number) for number in range(4)] == [" the", "##", "\n", "é"]


def test_models_of_bytes_need_no_tokenizer():
    assert token_text(None)(65) == "A"
