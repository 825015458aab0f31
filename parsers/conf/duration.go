package conf

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/portsnare/portsnare/detector"
)

const (
	day  = 24 * time.Hour
	week = 7 * day

	// maxDuration bounds what is not for ever, so that it can be added to any
	// date.
	maxDuration = 3650 * day

	// forever is how [detector.Forever] is written.
	forever = "forever"
)

var (
	errNoDuration = errors.New(`want a duration such as "2s", "90m", "1d12h" or "1w"`)
	errTooLong    = errors.New(`longer than ten years; use "forever" or less`)
)

// ParseDuration reads what [time.ParseDuration] does, with whole weeks (w) and
// days (d) before it, as in "7d" or "1w12h", or "forever", which is
// [detector.Forever]. A duration has no sign and is no longer than ten years.
func ParseDuration(s string) (time.Duration, error) {
	if s == forever {
		return detector.Forever, nil
	}
	weeks, rest := cutWhole(s, "w", week)
	days, rest := cutWhole(rest, "d", day)
	var within time.Duration
	if rest != "" || s == "" {
		var err error
		if within, err = time.ParseDuration(rest); err != nil || strings.ContainsAny(rest, "+-") {
			return 0, errNoDuration
		}
	}
	if sum := weeks + days + min(within, maxDuration+1); sum <= maxDuration {
		return sum, nil
	}
	return 0, errTooLong
}

// cutWhole takes a whole number of a unit off the start of s. What is longer than
// a duration can be is only so long that it is.
func cutWhole(s, unit string, length time.Duration) (d time.Duration, rest string) {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	rest, found := strings.CutPrefix(s[len(digits):], unit)
	if !found || digits == "" {
		return 0, s
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if most := uint64(maxDuration/length) + 1; err != nil || n > most {
		n = most
	}
	return time.Duration(n) * length, rest
}

// FormatDuration writes d so that [ParseDuration] reads it: in days and less,
// without the parts that are zero. A negative d is written as "0s".
func FormatDuration(d time.Duration) string {
	if d == detector.Forever {
		return forever
	}
	if d <= 0 {
		return "0s"
	}
	var text string
	if days := d / day; days > 0 {
		text = fmt.Sprintf("%dd", days)
	}
	if d %= day; d == 0 {
		return text
	}
	rest := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(rest, zero) {
			rest = rest[:len(rest)-2]
		}
	}
	return text + rest
}
