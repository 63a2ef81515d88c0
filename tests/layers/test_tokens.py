import torch

from glocal.layers import PatchEmbed, map_to_tokens, tokens_to_map


def test_map_and_tokens_are_inverse_and_row_by_row():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    tokens = map_to_tokens(x)
    assert tokens[0, 5].tolist() == x[0, :, 1, 1].tolist()
    assert torch.equal(tokens_to_map(tokens, 3, 4), x)


def test_patch_embedding_is_a_linear_layer_on_each_patch():
    embed = PatchEmbed(4, 3, 5).double()
    x = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            patch = x[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = embed.proj.weight.flatten(1) @ patch.flatten() + embed.proj.bias
            torch.testing.assert_close(embed(x)[0, :, row, column], expected)


def test_sizes_the_patch_does_not_divide_are_padded_below_and_right():
    embed = PatchEmbed(4, 3, 5)
    x = torch.randn(1, 3, 5, 7)
    padded = torch.zeros(1, 3, 8, 8)
    padded[:, :, :5, :7] = x
    assert embed.grid(5, 7) == (2, 2)
    assert torch.equal(embed(x), embed(padded))
