"""Tokens as people read them."""

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


def test_marks_of_blanks_and_bytes_are_what_they_stand_for():
    assert _texts("Ġthe", "▁a", "Ċ", "<0x41>") == [" the", " a", "\n", "A"]


def test_models_of_bytes_need_no_tokenizer():
    assert token_text(None)(65) == "A"
