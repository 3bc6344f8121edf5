"""The photographs are of 250 classes, one of each, so ten of one class do not exist. These are groups of ten by what can be
seen, under ImageNet's English names as they stand in the names of the files; the other photographs are in no group."""

GROUPS = {
    "bird": "hen house_finch bulbul great_grey_owl black_grouse macaw bee_eater toucan American_egret pelican",
    "boat": "canoe catamaran gondola liner schooner pirate drilling_platform dock breakwater amphibian",
    "building": "barbershop cliff_dwelling greenhouse library mobile_home mosque shoe_shop stupa tobacco_shop water_tower",
    "carnivore": "coyote giant_panda grey_fox hyena ice_bear leopard otter Siamese_cat tiger weasel",
    "clothing": "academic_gown bonnet cuirass feather_boa fur_coat jean military_uniform ski_mask sombrero stole",
    "container": "ashcan barrow beer_bottle coffee_mug cup Dutch_oven goblet hamper rain_barrel soap_dispenser",
    "dog": "Afghan_hound whippet Irish_terrier cairn Labrador_retriever English_setter Border_collie Doberman chow Newfoundland",
    "electronics": "cash_machine computer_keyboard dial_telephone hard_disc laptop loudspeaker monitor oscilloscope switch tape_player",
    "food": "artichoke chocolate_sauce custard_apple fig Granny_Smith guacamole head_cabbage ice_cream pretzel spaghetti_squash",
    "furniture": "chest cradle crib dining_table entertainment_center four-poster medicine_chest pool_table refrigerator washbasin",
    "insect": "black_and_gold_garden_spider cabbage_butterfly cicada cricket damselfly fly leaf_beetle tarantula tiger_beetle crayfish",
    "plant-eater": "baboon gibbon hippopotamus impala marmot proboscis_monkey ram titi wallaby zebra",
    "reptile": "alligator_lizard American_chameleon green_mamba king_snake Komodo_dragon night_snake sidewinder spotted_salamander terrapin thunder_snake",
    "sea": "chiton conch fiddler_crab hammerhead killer_whale lionfish rock_beauty sea_anemone sea_urchin tench",
    "tool": "corkscrew hatchet hook paintbrush power_drill rifle safety_pin screwdriver shovel spindle",
    "vehicle": "beach_wagon bicycle-built-for-two cab jinrikisha minivan steam_locomotive thresher tow_truck unicycle airliner",
}


def members(images):
    """Name of a group to its ten files."""
    files = {file.stem.split("_", 1)[1]: file.resolve() for file in images.glob("val/*/*")}
    groups = {group: [files[name] for name in names.split()] for group, names in GROUPS.items()}
    assert all(len(set(found)) == 10 for found in groups.values()), "ten of each"
    return groups
