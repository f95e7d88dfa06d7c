"""Ninety-nine things that go wrong in projects like this one, and for each what proves that it ends well here.

The proof is one or more tests, or a reason why the fault cannot happen. faults.py runs them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class NotApplicable:
    """A fault that cannot happen here, and why."""

    reason: str


NO_WORKERS = NotApplicable("there are no worker processes: a batch is a few gathers in memory (vit/data/loader.py)")
CONFIG, TRAIN = "config::test_a_bad_model_setting_is_refused", "config::test_a_bad_training_setting_is_refused"
IMAGES = "patch_embed::test_wrong_images_are_named"
RESUME_OTHER = "resume::test_other_optimizers_orders_and_shapes_are_refused_before_anything_changes"
KILLS = "kills::test_runs_that_are_killed_end_in_the_same_bits"
OTHER_STATES, NO_STATES = "state_file::test_other_files_are_named", "state_file::test_missing_files_and_folders"
NOT_FINITE = "resume::test_a_step_that_is_not_finite_is_not_taken"
SIGNAL = "interrupts::test_the_first_signal_saves"
OTHER_PICTURES = "pictures::test_other_files_are_recognized"

# Number: the fault, and the tests (file::test, several with spaces between) or the reason why there is none.
ROWS: dict[int, tuple[str, str | NotApplicable]] = {
    1: ("image size that patches do not divide", CONFIG),
    2: ("width that heads do not divide", CONFIG),
    3: ("zero, negative, float or bool where a count is due", CONFIG),
    4: ("dropout of 1.5, -0.1 or NaN", CONFIG),
    5: ("learning rate or weight decay of -1 or NaN", TRAIN),
    6: ("misspelt setting", f"{TRAIN} {CONFIG}"),
    7: ("unknown choice", CONFIG),
    8: ("classes of model and data differ", "loop::test_classes_are_compared_before_the_first_step"),
    9: ("warm-up longer than the run, no epochs", TRAIN),
    10: ("settings as code", "config::test_text_is_never_run_as_code safe_loads::test_nothing_is_loaded_unsafely"),
    11: ("settings of another network", "weights::test_another_network_is_refused_with_a_table_of_what_differs "
         "load_weights::test_another_network_is_refused_with_a_table"),
    12: ("uint8 images to the model", IMAGES),
    13: ("pixels that were not normalized", "predict::test_floats_that_were_not_normalized_bring_a_warning"),
    14: ("float64 or float16 images", IMAGES),
    15: ("channels last", IMAGES),
    16: ("no batch axis", IMAGES),
    17: ("one channel, or four", IMAGES),
    18: ("another image size", IMAGES),
    19: ("image smaller than a patch", f"{IMAGES} {CONFIG}"),
    20: ("NaN or infinite pixels", f"predict::test_bad_pixels_are_named {NOT_FINITE}"),
    21: ("empty batch", "predict::test_nothing_in_nothing_out loader::test_bad_splits_are_refused"),
    22: ("images on another device", IMAGES),
    23: ("array, list or path to the model", IMAGES),
    24: ("download cut off", "cifar10::test_row_24_download_cut_off"),
    25: ("a web page instead of the data", "cifar10::test_row_25_html_page_instead_of_the_archive"),
    26: ("archive altered", "cifar10::test_row_26_altered_download cifar10::test_row_26_damaged_file_on_disk"),
    27: ("batch file missing", "cifar10::test_row_27_batch_missing_or_of_wrong_size"),
    28: ("hostile pickle in the data", "cifar10::test_row_28_hostile_pickle_is_not_run"),
    29: ("paths, links and devices in an archive",
         "cifar10::test_row_29_paths_links_and_devices_in_a_tar_do_nothing"),
    30: ("archive bomb", "cifar10::test_row_30_bomb_member cifar10::test_row_30_bomb_archive"),
    31: ("labels out of range", "cifar10::test_row_31_label_out_of_range loader::test_bad_splits_are_refused"),
    32: ("labels of another type", "cifar10::test_row_32_labels_become_int64_and_floats_are_refused"),
    33: ("data folder read-only or full",
         "cifar10::test_row_33_folder_cannot_be_written "
         "cifar10::test_row_33_too_little_space"),
    34: ("two downloads at once", "cifar10::test_row_34_two_processes_at_once"),
    35: ("no network and no data", "cifar10::test_row_35_offline"),
    36: ("an image in two splits",
         "image_folder::test_a_picture_of_the_test_is_not_trained_on "
         "cifar10::test_real_splits_are_disjoint_and_complete"),
    37: ("file missing", f"{NO_STATES} weights::test_files_that_are_no_weights_are_refused"),
    38: ("empty file", OTHER_STATES),
    39: ("file cut off", "state_file::test_cut_off_anywhere "
         "reading::test_a_file_that_was_cut_off_is_refused"),
    40: ("flipped bit",
         "state_file::test_any_flipped_bit_is_seen "
         "resume::test_a_damaged_newest_state_is_set_aside_and_the_one_before_it_taken "
         "reading::test_a_flipped_bit_is_found "
         "reading::test_a_changed_text_is_found"),
    41: ("web page or text under the name of weights",
         f"{OTHER_STATES} "
         "weights::test_files_that_are_no_weights_are_refused"),
    42: ("folder instead of a file", f"{NO_STATES} "
         "reading::test_missing_files_folders_and_other_types"),
    43: ("hostile pickle", "state_file::test_a_hostile_pickle_runs_nothing "
         "reading::test_a_hostile_file_is_refused_and_not_run"),
    44: ("whole module, TorchScript", "state_file::test_whole_modules_are_no_states "
         "reading::test_whole_modules_and_programs_are_refused"),
    45: ("loading from an address, unsafely", "safe_loads::test_nothing_is_loaded_unsafely"),
    46: ("names with the prefix of a wrapper", "resume::test_a_compiled_model_is_saved_under_its_own_names "
         "load_weights::test_prefixes_and_wrappers_are_taken_off_and_named"),
    47: ("other shapes",
         f"{RESUME_OTHER} "
         "vision_transformer::test_resized_keeps_the_function_at_the_native_size_and_runs_at_others "
         "load_weights::test_another_shape_is_refused "
         "load_weights::test_a_head_is_replaced_on_request_only "
         "load_weights::test_positions_are_resized_on_request_only"),
    48: ("NaN in weights", f"{RESUME_OTHER} "
         "load_weights::test_values_that_are_no_weights_are_refused"),
    49: ("weights of another type", "resume::test_weights_of_another_type_are_refused "
         "load_weights::test_values_that_are_no_weights_are_refused "
         "load_weights::test_half_precision_is_reported"),
    50: ("optimizer state of another order", RESUME_OTHER),
    51: ("state of another optimizer", f"{RESUME_OTHER} loop::test_resume_refuses_another_run"),
    52: ("setting changed between stop and resume",
         "loop::test_resume_refuses_another_run "
         "resume::test_what_differs_and_may_is_said"),
    53: ("file of a newer version", "state_file::test_a_newer_format_asks_for_an_upgrade "
         "reading::test_a_config_of_the_future_says_so"),
    54: ("disk full while saving",
         "state_file::test_a_write_that_fails_anywhere_leaves_a_whole_state "
         "resume::test_a_full_disk_in_between_is_said_and_training_goes_on "
         "state_file::test_a_real_limit_of_the_system_is_like_a_full_disk"),
    55: ("no permission to write", "resume::test_a_folder_that_cannot_be_written_fails_before_the_first_step"),
    56: ("killed while saving", f"{KILLS} resume::test_what_killed_saves_have_left_is_removed"),
    57: ("state from a GPU on a machine without", "resume::test_a_state_from_a_gpu_is_read_without_one"),
    58: ("saved with other data or in other surroundings",
         "resume::test_other_data_other_order_and_other_loaders "
         "resume::test_what_differs_and_may_is_said "
         "distributed::test_another_number_of_processes_goes_on_and_says_what_is_not_exact"),
    59: ("loss not finite", NOT_FINITE),
    60: ("gradient not finite", NOT_FINITE),
    61: ("out of memory", "resume::test_want_of_memory_comes_with_a_way_out"),
    62: ("a batch larger than the data",
         "loader::test_each_sample_comes_exactly_once_an_epoch "
         "resume::test_loaders_that_give_nothing_are_refused_before_the_first_step"),
    63: ("nothing to train on or to measure",
         "resume::test_loaders_that_give_nothing_are_refused_before_the_first_step"),
    64: ("Ctrl-C, stop button",
         f"{SIGNAL} "
         "interrupts::test_the_second_signal_stops_at_once "
         "interrupts::test_the_stop_button_leaves_a_kernel_that_can_go_on"),
    65: ("SIGTERM", SIGNAL),
    66: ("a worker process dies", NO_WORKERS),
    67: ("label that a GPU would stumble over",
         "loader::test_bad_splits_are_refused "
         "cifar10::test_row_31_label_out_of_range"),
    68: ("clock set back", "resume::test_a_clock_that_is_set_back_does_not_matter"),
    69: ("history with half a line", "resume::test_a_half_written_history_is_made_whole"),
    70: ("a complete run started again", "resume::test_a_run_is_never_overwritten_and_one_that_is_complete_says_so"),
    71: ("layer or head that is not there", "attention_maps::test_a_layer_or_head_that_is_not_there_is_named"),
    72: ("maps asked for in training mode", "attention_maps::test_maps_are_those_before_dropout"),
    73: ("fused kernel without maps", "attention_maps::test_recording_changes_no_bit_of_the_forward_pass"),
    74: ("rollout with registers or mean pooling",
         "explain::test_every_method_explains_every_form "
         "attention_maps::test_a_layout_says_where_patches_are"),
    75: ("maps of a grid that is not square",
         "attention_maps::test_attention_from_one_token_is_its_row_without_the_prefix "
         "attention_maps::test_a_layout_says_where_patches_are"),
    76: ("hooks left after an error", "attention_maps::test_nothing_is_left_behind_after_an_error"),
    77: ("memory of all maps", "attention_maps::test_the_warning_of_large_maps_names_their_size_before_any_work"),
    78: ("no picture, empty or cut off", f"pictures::test_cut_off_files_are_named_at_every_length {OTHER_PICTURES}"),
    79: ("picture bomb", "pictures::test_a_bomb_is_refused_before_it_is_decoded"),
    80: ("16-bit gray", "pictures::test_sixteen_bits_are_scaled_and_not_clipped"),
    81: ("transparency, palettes, CMYK",
         "pictures::test_transparency_shows_white_and_not_a_hidden_color "
         "pictures::test_print_colors_become_rgb "
         "pictures::test_other_modes_keep_their_colors"),
    82: ("EXIF rotation", "pictures::test_every_orientation_ends_upright"),
    83: ("animation", "pictures::test_of_an_animation_the_first_frame_counts"),
    84: ("long and thin", "pictures::test_long_and_thin_pictures_are_refused"),
    85: ("training mode, no names, other normalization",
         "predict::test_the_mode_of_the_model_is_put_back_and_other_sizes_are_resized "
         "predict::test_wrong_kinds_are_refused "
         "picture_predictor::test_a_model_that_cannot_normalize_says_so"),
    86: ("picture of none of the classes",
         "picture_predictor::test_an_upload_is_predicted_and_explained "
         "notebook_faults::test_a_notebook_for_own_pictures_says_what_it_cannot_know"),
    87: ("cells out of order", "notebook_faults::test_a_cell_that_comes_too_early_names_what_is_missing"),
    88: ("run all, twice",
         "run_folder::test_runs_of_the_same_second_get_folders_of_their_own "
         "resume::test_a_second_and_third_training_leave_nothing_behind"),
    89: ("another working folder", "run_folder::test_the_working_folder_decides_nothing"),
    90: ("parameter of another type", TRAIN),
    91: ("package missing", "runs::test_without_tensorboard_the_error_says_what_to_do"),
    92: ("no GPU, or an unknown device", f"loop::test_devices {TRAIN}"),
    93: ("kernel restarted", f"background::test_the_end_of_python_saves_the_state {KILLS}"),
    94: ("one process of several fails",
         "distributed::test_one_that_fails_ends_all_and_is_named "
         "distributed::test_the_launcher_ends_all_in_bounded_time"),
    95: ("batch that processes do not divide",
         "distributed::test_two_processes_equal_a_loop_by_hand_over_the_whole_batches "
         "distributed::test_other_parts_or_other_weights_of_them_are_seen "
         "distributed::test_an_evaluation_is_shared_and_each_has_the_whole"),
    96: ("all processes write",
         "distributed::test_the_first_process_alone_writes "
         "runs::test_a_run_that_is_being_written_stays "
         "cifar10::test_row_34_two_processes_at_once"),
    97: ("processes with different settings", "distributed::test_what_cannot_be_one_training_is_refused_by_all"),
    98: ("port in use, open interface",
         "distributed::test_a_port_in_use_is_named "
         "distributed::test_nothing_listens_but_on_the_loopback_interface"),
    99: ("several processes from a notebook", "distributed::test_alone_nothing_is_exchanged"),
}  # fmt: skip
