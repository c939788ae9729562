"""Every sentence that the chat shows, in one place so that others can translate it."""

from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET

TITLE = "Where was this taken?"
SUBTITLE = "Add a street photo of {city}. The answer comes from its pixels alone; a position stored in it is not read."
ANY_CITY = "the city"

PHOTO = "Photo"
PHOTO_ALT = "The photo that is asked about"
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
ASK, STOP, CLEAR = "Ask", "Stop", "New photo"

CANDIDATES = "Most likely places"
CANDIDATES_NOTE = (
    "AddressCLIP compares the photo with {count} addresses; the shares add up to 100\u00a0% over all of them."
)
CANDIDATES_EMPTY = "The five most likely addresses appear here."
AGREES = "The answer is number {rank} of these."
SAME_STREET = "The answer is another part of the street of number {rank}."
DISAGREES = "The answer is none of these: be careful with it."
AGREES_MARK = "answer"

NO_PHOTO = "Please add a photo first."
NO_QUESTION = "Please type a question."
BAD_PHOTO = "{reason}. Please choose a photo as JPEG, PNG or WebP."
PHOTO_GONE = "This photo was deleted after an hour, as promised. Please add it again."
MODEL_FAILED = "The model could not answer this: {reason}. The next question works again."

ABOUT = "About this page"
ABOUT_TEXT = """
**What it knows.** {count} addresses of {city}. A photo of another place gets one of them all the same: the answer may
be wrong, and shares are no proof.

**Responsible use.** Made for photos of public streets: sorting archives, finding one's own pictures again. Do not use
it to find out where a person lives or is.

**What is kept.** Photos stay in a temporary folder of this computer, are deleted after an hour at the latest and when
the chat ends. Neither photos nor questions nor addresses are logged, and nothing is sent to anybody else.
"""
