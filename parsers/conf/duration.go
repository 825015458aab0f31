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
	errNoDuration  = errors.New(`want a duration such as "2s", "90m", "1d12h" or "1w"`)
	errTooLong     = errors.New(`longer than ten years; use "forever" or less`)
	wholeDurations = []struct {
		unit   string
		length time.Duration
	}{{"w", week}, {"d", day}}
)

// ParseDuration reads what [time.ParseDuration] does, with whole weeks (w) and
// days (d) before it, as in "7d" or "1w12h", or "forever", which is
// [detector.Forever]. A duration has no sign and is no longer than ten years.
func ParseDuration(s string) (time.Duration, error) {
	if s == forever {
		return detector.Forever, nil
	}
	rest, sum := s, time.Duration(0)
	for _, whole := range wholeDurations {
		digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		after, found := strings.CutPrefix(rest[len(digits):], whole.unit)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 16)
		switch {
		case errors.Is(err, strconv.ErrRange):
			return 0, errTooLong
		case err != nil:
			return 0, errNoDuration
		}
		rest, sum = after, sum+min(time.Duration(n), maxDuration/whole.length+1)*whole.length
	}
	if rest != "" || s == "" {
		if strings.ContainsAny(rest, "+-") {
			return 0, errNoDuration
		}
		parsed, err := time.ParseDuration(rest)
		if err != nil {
			return 0, errNoDuration
		}
		sum += min(parsed, maxDuration+1)
	}
	if sum > maxDuration {
		return 0, errTooLong
	}
	return sum, nil
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
