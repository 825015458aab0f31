package names

import "strings"

const (
	maxName  = 253 // bytes of a host name (RFC 1035, section 2.3.4, less the root's two)
	maxLabel = 63  // bytes between two dots (the same section)
)

// Safe returns a host name as it may enter a log line, in lower case and
// without the root's dot, or "" when it may not: a name that had to be mangled
// would be somebody else's. It takes letters, digits, hyphens and underscores
// in labels that neither begin nor end with a hyphen, so that no name can end
// a field, begin an option or hold a control character. The last label begins
// with a letter, so that no name reads as an address in any of its notations,
// "203.0.113.7" as little as "0xcb007107": OSSEC takes what a line has in this
// place for the source. Names in Punycode stay as they are.
func Safe(name string) string {
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxName {
		return ""
	}
	last := name
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return ""
		}
		last = label
	}
	if !isLetter(last[0]) {
		return ""
	}
	return strings.ToLower(name) // after the check, for it makes ASCII of some other letters
}

func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// choose returns the safe name that sorts first, or "": name servers change
// the order of several names, lines should not.
func choose(names []string) string {
	first := ""
	for _, name := range names {
		if safe := Safe(name); safe != "" && (first == "" || safe < first) {
			first = safe
		}
	}
	return first
}
