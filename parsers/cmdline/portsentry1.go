package cmdline

import (
	"strings"

	"github.com/portsnare/portsnare/parsers/conf"
)

// ParsePortSentry1 returns the word that PortSentry 1.2 was started with. It is
// false unless args are exactly one of -tcp, -udp, -stcp, -sudp, -atcp and
// -audp. PortSentry 2 takes none of these, so that the arguments tell which of
// the two is meant.
func ParsePortSentry1(args []string) (conf.ModeWord, bool) {
	if len(args) != 1 {
		return "", false
	}
	word, dashed := strings.CutPrefix(args[0], "-")
	words, err := conf.ParseModeWords(word)
	if !dashed || err != nil || len(words) != 1 {
		return "", false
	}
	return words[0], true
}
