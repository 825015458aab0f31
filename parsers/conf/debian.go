package conf

import (
	"slices"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// LoadDebianDefaults reads /etc/default/portsentry, by which Debian chooses the
// modes that PortSentry 1.2 is started with: assignments to TCP_MODE and
// UDP_MODE. The file is meant for a shell, but no shell sees it here, so that
// nothing in it is carried out. An error is always a [Faults].
func LoadDebianDefaults(path string) ([]ModeWord, []Warning, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, nil, Faults{{Place: Place{File: path}, Text: err.Error(), Err: err}}
	}
	return parseDebianDefaults(path, text)
}

// parseDebianDefaults is [LoadDebianDefaults] for a text already read.
func parseDebianDefaults(name string, text []byte) ([]ModeWord, []Warning, error) {
	d := newDiagnosis(name)
	chosen := make(map[string]ModeWord) // by variable; the last one counts, as in a shell
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		place := Place{File: name, Line: n}
		variable, value, assigned := strings.Cut(line, "=")
		proto, known := debianModes[variable]
		if !assigned || !known {
			d.warn(place, "passed over; only TCP_MODE=... and UDP_MODE=... are read here")
			continue
		}
		place.Key = variable
		chosen[variable] = d.debianMode(place, proto, value)
	}
	var words []ModeWord
	for _, variable := range []string{"TCP_MODE", "UDP_MODE"} {
		if word := chosen[variable]; word != "" {
			words = append(words, word)
		}
	}
	if len(words) == 0 && len(d.faults) == 0 {
		d.fault(Place{File: name}, "starts nothing; set TCP_MODE or UDP_MODE")
	}
	if err := d.err(); err != nil {
		return nil, d.warnings, err
	}
	return words, d.warnings, nil
}

var debianModes = map[string]detector.Proto{"TCP_MODE": detector.TCP, "UDP_MODE": detector.UDP}

// debianMode returns the mode that a value stands for, which is none if it is
// empty.
func (d *diagnosis) debianMode(place Place, proto detector.Proto, value string) ModeWord {
	var allowed []ModeWord
	for _, word := range modeWords {
		if word.Proto() == proto {
			allowed = append(allowed, word)
		}
	}
	text, plain := shellWord(value)
	word := ModeWord(text)
	switch {
	case !plain:
		d.fault(place, "%s is no plain word; use %s, or nothing", strconv.Quote(value), listWords(allowed))
	case text != "" && !slices.Contains(allowed, word):
		d.fault(place, "%q is no mode for %s; use %s, or nothing", text, proto, listWords(allowed))
	}
	return word
}

// shellWord returns what a shell takes value for, if that is a word of letters
// and digits, quoted or not, and at most a comment follows.
func shellWord(value string) (word string, plain bool) {
	var rest string
	if quote := value[:min(1, len(value))]; quote == `"` || quote == "'" {
		var closed bool
		if word, rest, closed = strings.Cut(value[1:], quote); !closed {
			return "", false
		}
	} else {
		word = value[:len(value)-len(strings.TrimLeft(value, lettersAndDigits))]
		rest = value[len(word):]
	}
	after := strings.TrimLeft(rest, " \t")
	commented := after == "" || after[0] == '#' && after != rest
	return word, commented && strings.Trim(word, lettersAndDigits) == ""
}

const lettersAndDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
