package hostsdeny

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/portsnare/portsnare/outputs/runcmd"
)

// maxLine is the longest line that libwrap reads whole, without its newline. At
// a longer one Debian's libwrap denies everybody access, and likewise at a last
// line without a newline.
const maxLine = 2046

// Line makes the line that keeps a source out of template (KILL_HOSTS_DENY), in
// which every $TARGET$, $PORT$ and $MODE$ is replaced. An IPv6 source is put in
// brackets, without which TCP wrappers take it for a name and let it in; so it
// does not matter whether template has them. It returns [runcmd.ErrNoTarget] if
// template does not name the source.
func Line(template string, t runcmd.Tokens) (string, error) {
	const target = "$TARGET$"
	if !strings.Contains(template, target) {
		return "", runcmd.ErrNoTarget
	}
	source, err := runcmd.Source(t.Source)
	if err != nil {
		return "", err
	}
	client := clientOf(source)
	template = strings.NewReplacer("["+target+"]", client, target, client).Replace(template)
	return runcmd.Expand(template, t)
}

// clientOf writes a source as hosts_access(5) wants it.
func clientOf(source netip.Prefix) string {
	addr := source.Addr()
	switch {
	case addr.Is6() && source.IsSingleIP():
		return "[" + addr.String() + "]"
	case addr.Is6():
		return fmt.Sprintf("[%v]/%d", addr, source.Bits())
	case source.IsSingleIP():
		return addr.String()
	}
	// Not every libwrap takes a length for a mask.
	return addr.String() + "/" + net.IP(net.CIDRMask(source.Bits(), addr.BitLen())).String()
}

// checkLine says what is wrong with a line. What passes is one rule to libwrap,
// whole and apart from the next.
func checkLine(line string) error {
	switch {
	case strings.TrimSpace(line) == "":
		return errors.New("line for hosts.deny is empty")
	case len(line) > maxLine:
		return fmt.Errorf("line for hosts.deny has %d bytes; TCP wrappers read %d", len(line), maxLine)
	case strings.ContainsAny(line, "\n\x00"):
		return fmt.Errorf("line for hosts.deny holds a newline or a NUL: %q", line)
	case strings.HasSuffix(line, `\`):
		return fmt.Errorf("line for hosts.deny ends in a backslash, which would make the next line part of it: %q", line)
	}
	return nil
}

// rules returns the rules of a hosts.deny as libwrap reads them, each with its
// newlines. A rule is a line together with those that it goes on with.
func rules(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		start, end := 0, 0
		for line := range bytes.Lines(text) {
			end += len(line)
			if !whole(line) {
				continue
			}
			if !yield(text[start:end:end]) {
				return
			}
			start = end
		}
		if start < end {
			yield(text[start:end:end])
		}
	}
}

// whole reports whether a rule ends with this line, so that what comes after it
// is a rule of its own. Behind a NUL libwrap does not see the newline.
func whole(line []byte) bool {
	body, ended := bytes.CutSuffix(line, []byte("\n"))
	return ended && !bytes.HasSuffix(body, []byte(`\`)) && !bytes.Contains(body, []byte{0})
}

// addLine returns text with line as its last rule, unless that is among the
// rules already (present). What is there stays as it is, but for the newlines
// that the last rule needs to be whole.
func addLine(text []byte, line string) (added []byte, present bool) {
	var last []byte
	for last = range rules(text) {
		if string(last) == line+"\n" {
			return text, true
		}
	}
	text = slices.Clone(text)
	if string(last) == line { // it only lacks its newline
		return append(text, '\n'), false
	}
	for len(text) > 0 && !whole(lastLine(text)) {
		text = append(text, '\n')
	}
	return append(append(text, line...), '\n'), false
}

func lastLine(text []byte) []byte {
	return text[bytes.LastIndexByte(bytes.TrimSuffix(text, []byte("\n")), '\n')+1:]
}

// removeLine returns text without the rules that are equal to line: PortSentry
// 1.2 adds the same one after each restart.
func removeLine(text []byte, line string) (rest []byte, removed bool) {
	rest = make([]byte, 0, len(text))
	for rule := range rules(text) {
		if string(bytes.TrimSuffix(rule, []byte("\n"))) == line {
			removed = true
			continue
		}
		rest = append(rest, rule...)
	}
	return rest, removed
}
