"""The panel for pictures of one's own: what is uploaded is predicted, and what is no picture is answered."""

import pytest
from PIL import Image

import vit

pytestmark = pytest.mark.browser


def test_an_upload_is_predicted_and_what_is_no_picture_is_answered(open_notebook, tmp_path):
    page = open_notebook("08_your_images")
    page.screenshot("opened")
    images = vit.load_data("shapes", num_train=10, num_val=10, num_test=3, image_size=(60, 90)).test.images
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "mine.png")
    model = vit.load("vit_nano_patch4_32.shapes")
    probabilities = vit.predict(model, tmp_path / "mine.png")[0]
    name = model.metadata["class_names"][probabilities.argmax()]

    before = page.picture()
    page.upload(tmp_path / "mine.png")
    answer = f"mine.png: {name}, {100 * probabilities.max():.0f} %"
    page.wait(lambda: answer in page.panel.text, f"the panel does not say {answer}")
    uploaded = page.wait_for_another_picture(before)
    page.screenshot("uploaded")

    (tmp_path / "notes.png").write_text("remember the milk")
    page.upload(tmp_path / "notes.png")
    reason = "notes.png cannot be read: it is no known picture"
    page.wait(lambda: reason in page.panel.text, "the file that is no picture is not answered")
    assert not page.picture(), "the earlier picture is still there, beside the error"
    page.screenshot("refused")

    page.upload(tmp_path / "mine.png")
    page.wait(lambda: answer in page.panel.text, "the panel did not go on after the error")
    page.wait(page.picture, "the picture did not come back")
    page.choose("method", "gradient rollout")
    page.wait_for_another_picture(uploaded)
    assert page.console_errors() == []
