"""Every sentence that the chat shows, in one place so that others can translate it."""

from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET

TITLE = "Where was this taken?"
SUBTITLE = "Add a street photo of {city}. The answer comes from its pixels alone; a position stored in it is not read."
ANY_CITY = "the city"

PHOTO = "Photo"
PHOTO_ALT = "The photo that is asked about"
MORE_PHOTOS = "More photos of the same place"
MORE_PHOTOS_HINT = "They are looked at together, and every one has a vote."
EXAMPLES = "Or try one of these"
EXAMPLE_LABEL = "Example {number}"
CHAT = "Conversation"
CHAT_EMPTY = "Add a photo, and its address appears here."
QUESTION = "Question"
QUESTION_HINT = "Ask about this photo"
DEFAULT_QUESTION = "Where was this taken?"
FOLLOW_UPS = {
    STREET: "Which street is this?",
    BETWEEN: "Between which cross streets is this?",
    NEIGHBOURHOOD: "Which neighbourhood is this?",
    CITY: "Which city is this?",
}
ASK_HOW_SURE = "How sure are you?"
ASK_WHAT_ELSE = "What else could it be?"
ASK_WHY = "What in the photo tells you?"
ASK, STOP, CLEAR = "Ask", "Stop", "New photo"
STATUS_NEW = "New photo: a new conversation."
STATUS_TOGETHER = "{count} photos, answered together: a new conversation."

HOW_SURE = "{street}: {street_share}. This very piece of it: {share}."
ANSWER_SHARE = "The place that I named in words: {share}."
MEASURED_ON = "These shares were calibrated on {count} photos, of which {accuracy} get the right street."
NOT_MEASURED = "Nobody has measured yet how often such shares are right (serve.calibrate does)."
WHAT_ELSE = "Next likely:"
NOTHING_ELSE = "There is no other address in this city's list."
NOT_SURE = "I am not sure: one of these streets: {streets}."
NOT_HERE = "This does not look like {city}: I may be naming the least unlike place."
TOO_SLOW = "Cut off after {seconds} seconds."
WHY = "The address rests most on the marked regions: without them it becomes less likely."
WHY_NOTHING = "No single region carries the address: covering any one of them does not make it less likely."
PERCENT = "{:.0f}\u00a0%"
UNDER_ONE_PERCENT = "under 1\u00a0%"

CANDIDATES = "Most likely places"
CANDIDATES_NOTE = (
    "AddressCLIP compares the photo with {count} addresses; the shares add up to 100\u00a0% over all of them."
)
CANDIDATES_EMPTY = "The five most likely addresses appear here."
AGREES = "The answer is number {rank} of these."
SAME_STREET = "The answer is another part of the street of number {rank}."
DISAGREES = "The answer is none of these: be careful with it."
AGREES_MARK = "answer"

MAP_EMPTY = "Map of the streets"
MAP_ALT = "Map of the candidates, by number. Answer: {answer}"
MAP_NO_ANSWER = "no street of this map yet"
NO_GEOMETRY = "This model's address list has no street lines, so there is no map."
ZOOM_IN, ZOOM_OUT, ZOOM_HOME = "Closer", "Farther", "Back to the first view"
FIND = "Where on the map does this photo fit ..."
FIND_HINT = "a street, a neighbourhood, or any words: “brick houses by the river”"
FIND_BUTTON = "Show"
FIND_NAMED = "{text}: {share} of all probability lies there. The darker, the better the photo fits."
FIND_WORDS = "“{text}”: the darker, the better both the photo and the words fit."

WHY_ALT = "The photo with the regions marked that speak most for {address}"
WHY_CAPTION = (
    "Up to {count} regions that speak most for {address}: blurring them lowers its probability most (occlusion). "
    "They show what the candidates rest on."
)

CHECK = "Compare with the position stored in the photo"
CHECK_HINT = "Read after the answer, shown to you alone, never given to the model."
POSITION_CHECK = "The photo says {street}, {distance} from my answer."
POSITION_ALONE = "The photo says {street} ({distance} away from it); there is no answer to compare with."
NO_POSITION = "This photo carries no position."

NO_PHOTO = "Please add a photo first."
NO_ADDRESS = "A photo is uploaded, not named by its address: nothing is fetched from other computers."
NO_QUESTION = "Please type a question."
BAD_PHOTO = "{reason}. Please choose a photo as JPEG, PNG or WebP."
TOO_MANY_PHOTOS = "At most {most} photos are looked at together."
PHOTO_GONE = "This photo was deleted after an hour, as promised. Please add it again."
MODEL_FAILED = "The model could not answer this: {reason}. The next question works again."
OUT_OF_MEMORY = "There is not enough memory for this just now. Please ask again in a moment, or with fewer photos."

ABOUT = "About this page"
ABOUT_TEXT = """
**What it knows.** {count} addresses of {city}. {measured}

**Responsible use.** Made for photos of public streets: sorting archives, finding one's own pictures again. Do not use
it to find out where a person lives or is.

**What is kept.** Photos stay in a temporary folder of this computer. They are deleted some ten minutes after this page
is closed or shows other photos, after an hour at the latest, and when the chat ends. Neither photos nor questions nor
addresses are logged, and nothing is sent to anybody else{tiles}.
"""
ABOUT_TILES = ", except that your browser asks {host} for the map's background, which tells it the part of town you see"
ABOUT_UNMEASURED = (
    "A photo of another place gets one of them all the same: the answer may be wrong, and shares are no proof. "
    "Nobody has measured this model's confidence yet (`python -m serve.calibrate`)."
)
ABOUT_MEASURED = (
    "Measured on {num_photos} photos it was not trained on: the best street is right for {accuracy}; it is stated "
    "without a caution for {share_sure}, and then right for {accuracy_sure}. {refused_here} of this city's photos are "
    "wrongly said to look like another place; {elsewhere}"
)
ABOUT_ELSEWHERE = "of {num_elsewhere} photos of other places, {accepted_elsewhere} are wrongly taken for this city."
ABOUT_NO_ELSEWHERE = "how many of other places are wrongly taken for this city has not been measured."

SHARE_WARNING = (
    "warning: --share opens this page to everybody who has its address, through a tunnel whose operator (gradio.live) "
    "sees the photos and answers that pass"
)
