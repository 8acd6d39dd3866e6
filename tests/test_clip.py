"""CLIP's towers equal transformers' own module, and an adapter survives its file."""

import json
import logging
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import veridical
from veridical.core.errors import BadOption, WeightsMissing
from veridical.features import FrozenNetwork, weights
from veridical.features.adapter import AdaptedFeatures, Adapter, Base
from veridical.features.clip import CLIPNetwork

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]  # openai/CLIP, clip/clip.py
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(2, 3, 32, 32, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


@pytest.fixture(scope="session")
def tower(clip_folder):
    from transformers import CLIPVisionModel

    return CLIPVisionModel.from_pretrained(clip_folder).eval().requires_grad_(False)


def hidden(tower, image: torch.Tensor, block: int, **options: object) -> torch.Tensor:
    """The tokens (N, T, D) after a block; transformers counts the embedding as 0."""
    return tower((image - MEAN) / STD, output_hidden_states=True, **options).hidden_states[block + 1]


def seen(features, image: torch.Tensor) -> torch.Tensor:
    (maps,) = features(image, features.draw()).values()
    return maps


# The tower


@pytest.mark.parametrize("block", [0, 3])
def test_tokens_equal_those_of_transformers(clip_folder, tower, images, block):
    tokens = hidden(tower, images[0], block).transpose(1, 2)
    for which, expected in {
        "all": tokens[..., None],
        "patch": tokens[..., 1:].unflatten(2, (4, 4)),
        "class": tokens[..., :1, None],
    }.items():
        found = seen(CLIPNetwork(weights=clip_folder, block=block, tokens=which), images[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradient_equals_that_of_transformers(clip_folder, tower, images):
    prediction, target = images
    ours, theirs = (prediction.clone().requires_grad_() for _ in range(2))
    loss = veridical.loss("fmlc", weights=str(clip_folder))(ours, target)
    expected = (hidden(tower, theirs, 3) - hidden(tower, target, 3)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4 * theirs.grad.abs().max().item())


def test_a_large_image_is_resized_without_antialiasing(clip_folder, tower, images):
    large = nn.functional.interpolate(images[0], (70, 53), mode="bilinear")
    small = nn.functional.interpolate(large, (32, 32), mode="bicubic", align_corners=False)
    found = seen(CLIPNetwork(weights=clip_folder), large)[..., 0].transpose(1, 2)
    torch.testing.assert_close(found, hidden(tower, small, 3), rtol=1e-4, atol=1e-5)


def test_positions_are_interpolated_as_transformers_does(clip_folder, tower, images):
    wide = images[0].repeat(1, 1, 1, 2)[..., :56]
    expected = hidden(tower, wide, 3, interpolate_pos_encoding=True)
    network = CLIPNetwork(weights=clip_folder, size="interpolate", tokens="patch")
    assert seen(network, wide).shape == (2, 32, 4, 7)
    torch.testing.assert_close(seen(network, wide).flatten(2).transpose(1, 2), expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert seen(network, wide[..., :45]).shape == (2, 32, 4, 6)  # the nearest multiple of 8


def test_raw_input_is_an_option(clip_folder, tower, images):
    expected = tower(images[0], output_hidden_states=True).hidden_states[4]
    found = seen(CLIPNetwork(weights=clip_folder, normalisation="none"), images[0])
    torch.testing.assert_close(found[..., 0].transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_later_blocks_are_not_kept(clip_folder):
    sizes = [sum(b.numel() for b in CLIPNetwork(weights=clip_folder, block=k).buffers()) for k in (0, 1, 4)]
    assert sizes[2] - sizes[1] == 3 * (sizes[1] - sizes[0]) > 0
    assert CLIPNetwork(weights=clip_folder, block=1).weight_hashes == CLIPNetwork(weights=clip_folder).weight_hashes


def test_the_whole_of_clip_gives_its_image_tower_silently(tmp_path, images, capfd):
    """The folders on the hub hold both towers."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging as transformers_logging

    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = said.append
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 5, "max_position_embeddings": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    both = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    both.save_pretrained(tmp_path)
    capfd.readouterr()
    transformers_logging.add_handler(listener)
    try:
        network = CLIPNetwork(weights=tmp_path, block=3)
    finally:
        transformers_logging.remove_handler(listener)
    assert said == []
    assert capfd.readouterr() == ("", "")
    expected = hidden(both.vision_model, images[0], 3)
    torch.testing.assert_close(seen(network, images[0])[..., 0].transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_a_single_file_needs_no_transformers(tmp_path, images, monkeypatch):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 768, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 12}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).eval()
    model.save_pretrained(tmp_path)
    old = {f"vision_model.{key}": value for key, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(old, tmp_path / "old.safetensors")  # the names before transformers 5
    monkeypatch.setattr("veridical.features.clip.require", None)
    for name in ("model.safetensors", "old.safetensors"):
        found = seen(CLIPNetwork(weights=tmp_path / name, block=0), images[0])
        expected = hidden(model, images[0], 0)
        torch.testing.assert_close(found[..., 0].transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_what_is_missing_says_what_to_do(monkeypatch, tmp_path, clip_folder):
    monkeypatch.setenv("VERIDICAL_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"hf download openai/clip-vit-large-patch14`.*weights=FOLDER"):
        veridical.loss("fmlc(tower=vit-l-14)")
    with pytest.raises(WeightsMissing, match="neither a folder nor a file"):
        veridical.loss("fmlc", weights=str(tmp_path / "absent"))
    with pytest.raises(WeightsMissing, match="could not be read"):
        veridical.loss("fmlc", weights=str(tmp_path))
    with pytest.raises(WeightsMissing, match="give its folder"):
        veridical.loss("fmlc", weights=str(clip_folder / "model.safetensors"))


def test_a_tower_with_a_tensor_missing_is_refused_not_filled_with_random_numbers(tmp_path, clip_folder):
    shutil.copytree(clip_folder, tmp_path / "tower")
    tensors = load_file(clip_folder / "model.safetensors")
    del tensors["encoder.layers.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "tower" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match=r"has no encoder\.layers\.1\.mlp\.fc1\.bias"):
        CLIPNetwork(weights=tmp_path / "tower")


@pytest.mark.parametrize(
    "options",
    [
        {"tower": "vit-b-15"},
        {"block": 5},
        {"block": -1},
        {"tokens": "cls"},
        {"size": 224},
        {"normalisation": "imagenet"},
    ],
)
def test_an_impossible_option_is_refused(clip_folder, options):
    with pytest.raises(veridical.core.errors.VeridicalError):
        veridical.loss("fmlc", weights=str(clip_folder), **options)


# The adapter


def written_out(adapter: Adapter, maps: torch.Tensor) -> torch.Tensor:
    """The layers one by one, as in evaluation. (N, C, h, w) -> (N, width, h, w) or (N, width)."""
    layers = adapter.layers
    tokens = maps.flatten(2).transpose(1, 2)
    x = tokens.flatten(1) if adapter.kind == "flattened" else tokens.flatten(0, 1)
    for k in (0, 3):
        x = x @ layers[k].weight.T + layers[k].bias
        norm = layers[k + 1]
        x = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
        x = x.clamp(min=0)
    x = x @ layers[6].weight.T + layers[6].bias
    return (
        x
        if adapter.kind == "flattened"
        else x.unflatten(0, tokens.shape[:2]).transpose(1, 2).unflatten(2, maps.shape[2:])
    )


def test_tfmlc_is_the_mean_square_of_the_adapted_tokens(clip_folder, adapter_file, tower, images):
    adapter = Adapter.load(adapter_file("clip"))
    ours, theirs = (written_out(adapter, hidden(tower, image, 3).transpose(1, 2)[..., None]) for image in images)
    assert ours.shape == (2, 16)
    loss = veridical.loss("tfmlc", adapter=str(adapter_file("clip")), weights=str(clip_folder))
    torch.testing.assert_close(loss(*images), (ours - theirs).square().mean(), rtol=1e-4, atol=0)


def test_an_adapter_works_on_vgg_features(network_file, adapter_file, images):
    adapter = Adapter.load(adapter_file("vgg16"))
    vgg = FrozenNetwork("vgg16", taps=("relu1_2",), weights=network_file("vgg16"))
    ours, theirs = (written_out(adapter, seen(vgg, image)) for image in images)
    assert ours.shape == (2, 16, 32, 32)
    loss = veridical.loss("tfmlc", adapter=str(adapter_file("vgg16")), weights=str(network_file("vgg16")))
    torch.testing.assert_close(loss(*images), (ours - theirs).square().mean(), rtol=1e-4, atol=0)


def test_the_weights_that_an_adapter_needs_are_known_without_building_it(adapter_file):
    assert veridical.losses.needs(f"tfmlc(adapter='{adapter_file('vgg16')}')") == ("vgg16",)
    assert veridical.losses.needs(f"tfmlc(adapter='{adapter_file('clip')}')") == ()
    assert veridical.losses.needs(f"tfmlc(adapter='{adapter_file('vgg16')}', weights=a.pth)") == ()


def test_the_frozen_adapter_equals_the_trained_one_in_evaluation(clip_folder, adapter_file, images):
    adapter = Adapter.load(adapter_file("clip")).eval()
    base = adapter.base.build(weights=clip_folder)
    found = seen(AdaptedFeatures(adapter, weights=clip_folder), images[0])
    torch.testing.assert_close(found, adapter(seen(base, images[0])), rtol=1e-4, atol=1e-5)


def test_a_pooled_adapter_takes_any_size(network_file, tmp_path):
    base = Base("vgg16", "relu2_2", {"normalisation": "none"})
    features = base.build(weights=network_file("vgg16"))
    adapter = Adapter.fitting(base, features, size=32, kind="flattened", pool=2, width=8)
    assert adapter.layers[0].in_features == 128 * 4
    adapter.save(tmp_path / "a.safetensors")
    loss = veridical.loss("tfmlc", adapter=str(tmp_path / "a.safetensors"), weights=str(network_file("vgg16")))
    for size in (32, 41):
        image = torch.rand(1, 3, size, size)
        assert torch.isfinite(loss(image, 1 - image))


def test_a_flattened_adapter_is_tied_to_its_size(network_file, tmp_path):
    base = Base("vgg16", "relu2_2")
    adapter = Adapter.fitting(base, base.build(weights=network_file("vgg16")), size=32, kind="flattened", width=8)
    adapter.save(tmp_path / "a.safetensors")
    loss = veridical.loss("tfmlc", adapter=str(tmp_path / "a.safetensors"), weights=str(network_file("vgg16")))
    with pytest.raises(ValueError, match="resize the images, or train one with pool"):
        loss(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40))


def test_an_adapter_learns(clip_folder, images):
    """What issue 4 builds on: it is an ordinary module, whose base stays as it is."""
    base = Base("vit-b-16", "block1", {"tokens": "patch"})
    features = base.build(weights=clip_folder)
    adapter = Adapter.fitting(base, features, size=32, kind="token-wise", width=8).train()
    optimiser = torch.optim.Adam(adapter.parameters(), 1e-2)
    prediction, target = (seen(features, image) for image in images)

    def distance() -> torch.Tensor:
        return (adapter(prediction) - adapter(target)).square().mean()

    before = distance().item()
    for _ in range(20):
        optimiser.zero_grad()
        distance().backward()
        optimiser.step()
    assert distance().item() < 0.5 * before
    assert list(features.parameters()) == []


def test_a_file_gives_the_same_adapter_again(adapter_file, tmp_path):
    adapter = Adapter.load(adapter_file("clip"))
    adapter.save(tmp_path / "again.safetensors")
    again = Adapter.load(tmp_path / "again.safetensors")
    assert again.settings == adapter.settings
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), adapter.state_dict().values(), strict=True)
    )
    assert all(p.requires_grad for p in again.parameters())
    assert weights.content_hash(again.state_dict()) == weights.content_hash(adapter.state_dict())


def test_other_weights_below_an_adapter_are_refused(adapter_file, network_file, tmp_path):
    tensors = load_file(network_file("vgg16"))
    tensors["features.0.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMissing, match="was trained on vgg16 weights"):
        veridical.loss("tfmlc", adapter=str(adapter_file("vgg16")), weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, notes: notes.update(format="veridical adapter 2"), "found 'veridical adapter 2'"),
        (lambda tensors, notes: notes.clear(), "no note of its format"),
        (lambda tensors, notes: notes.update(settings="{"), "cannot be read"),
        (lambda tensors, notes: notes.update(settings="[1]"), "no table with a base"),
        (lambda tensors, notes: tensors.pop("layers.3.bias"), r"layers\.3\.bias"),
        (lambda tensors, notes: tensors.update({"layers.6.weight": torch.zeros(16, 5)}), r"layers\.6\.weight"),
        (lambda tensors, notes: tensors["layers.0.bias"].fill_(float("inf")), "not finite"),
        (lambda tensors, notes: notes.update(settings=edited(notes, channels=10**9)), "size mismatch"),
        (lambda tensors, notes: notes.update(settings=edited(notes, kind="tokens")), "kind of adapter must be"),
        (lambda tensors, notes: notes.update(settings=edited(notes, extra=1)), "unexpected keyword"),
    ],
)
def test_a_file_made_by_hand_is_an_error_that_says_what_is_wrong(adapter_file, tmp_path, change, message):
    tensors = load_file(adapter_file("clip"))
    with safe_open(adapter_file("clip"), framework="pt") as opened:
        notes = dict(opened.metadata())
    change(tensors, notes)
    save_file(tensors, tmp_path / "wrong.safetensors", metadata=notes)
    with pytest.raises(WeightsMissing, match=message):
        Adapter.load(tmp_path / "wrong.safetensors")


def edited(notes: dict[str, str], **changes: object) -> str:
    return json.dumps(json.loads(notes["settings"]) | changes)


def test_a_file_that_was_cut_off_or_is_absent_is_an_error(adapter_file, tmp_path):
    whole = adapter_file("clip").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("cut", "absent"):
        for spec in (Adapter.load, lambda path: veridical.losses.needs(f"tfmlc(adapter='{path}')")):
            with pytest.raises(WeightsMissing, match=r"cut|absent"):
                spec(tmp_path / f"{name}.safetensors")
    with pytest.raises(BadOption, match="needs the file of an adapter"):
        veridical.loss("tfmlc")
