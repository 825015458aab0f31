package blockfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"

	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// A List is what a file of blocked sources says, whichever PortSentry's it is.
type List struct {
	Format  conf.BanFileFormat // empty: an empty file, which is a list of either
	Blocked []logline.Blocked  // each source once, in the file's order; PortSentry 2's have the source alone
}

// Read reads a list of either format, of at most 64 MiB. Of a damaged list it
// returns what there is to read together with an error that says what there is
// not.
func Read(r io.Reader) (List, error) {
	data, err := readAll(r)
	if err != nil {
		return List{}, err
	}
	list := List{Format: formatOf(data)}
	listed := make(map[source]struct{})
	add := func(b logline.Blocked) {
		key := b.Source.As16()
		if _, again := listed[key]; !again {
			listed[key] = struct{}{}
			list.Blocked = append(list.Blocked, b)
		}
	}
	switch list.Format {
	case conf.BanFilePortSentry2:
		_, err = parseBinary(data, func(addr netip.Addr) { add(logline.Blocked{Source: addr}) })
	case conf.BanFilePortSentry1:
		err = unreadable(parseText(data, add))
	default:
		err = foreign(data)
	}
	return list, err
}

// Append appends the record of b, in the given format, to dst.
func Append(dst []byte, format conf.BanFileFormat, b *logline.Blocked) []byte {
	if format == conf.BanFilePortSentry1 {
		return append(b.Append(dst), '\n')
	}
	addr := b.Source.Unmap()
	family := uint16(syscall.AF_INET6)
	if addr.Is4() {
		family = syscall.AF_INET
	}
	dst = binary.NativeEndian.AppendUint16(dst, family)
	return append(dst, addr.AsSlice()...)
}

// program returns whose format it is, in words.
func program(format conf.BanFileFormat) string {
	if format == conf.BanFilePortSentry1 {
		return "PortSentry 1.2"
	}
	return "PortSentry 2"
}

var errTooLarge = fmt.Errorf("larger than %d MiB, the most that is read; move it away", maxSize>>20)

// readAll reads what is at most maxSize long.
func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err == nil && len(data) > maxSize {
		err = errTooLarge
	}
	return data, err
}

// formatOf returns the format of a list: that of which data has a record, where
// PortSentry 2's would be its first. It returns "" if data has none.
func formatOf(data []byte) conf.BanFileFormat {
	if _, _, err := cutRecord(data); err == nil {
		return conf.BanFilePortSentry2
	}
	for line := range bytes.Lines(data) {
		if _, err := parseLine(line); err == nil {
			return conf.BanFilePortSentry1
		}
	}
	return ""
}

// foreign returns an error unless data, which has no record of either format,
// holds nothing.
func foreign(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	return errors.New("neither a list of PortSentry 2 nor one of PortSentry 1.2")
}

// errTorn says that a list of PortSentry 2 ends too early.
var errTorn = errors.New("ends in the middle of a record")

// A familyError is the number in a record of PortSentry 2 that should say whether
// the address is IPv4 or IPv6.
type familyError uint16

func (e familyError) Error() string { return fmt.Sprintf("unknown address family %d", uint16(e)) }

// parseBinary calls take for each record of PortSentry 2 up to the first fault,
// and returns how many bytes these are. The fault is errTorn or a familyError.
func parseBinary(data []byte, take func(netip.Addr)) (good int, err error) {
	for rest := data; len(rest) > 0; {
		addr, after, err := cutRecord(rest)
		if err != nil {
			return len(data) - len(rest), err
		}
		take(addr)
		rest = after
	}
	return len(data), nil
}

// cutRecord takes a record of PortSentry 2 off the front of data: the address
// family as the C structures of this machine have it, and the address.
func cutRecord(data []byte) (addr netip.Addr, rest []byte, err error) {
	const familySize = 2
	if len(data) < familySize {
		return addr, nil, errTorn
	}
	end := familySize
	switch family := binary.NativeEndian.Uint16(data); family {
	case syscall.AF_INET:
		end += 4
	case syscall.AF_INET6:
		end += 16
	default:
		return addr, nil, familyError(family)
	}
	if len(data) < end {
		return addr, nil, errTorn
	}
	addr, _ = netip.AddrFromSlice(data[familySize:end])
	return addr.Unmap(), data[end:], nil
}

// parseText calls take for each record of PortSentry 1.2, and returns how many
// lines are none. Lines without any text do not count.
func parseText(data []byte, take func(logline.Blocked)) (skipped int) {
	for line := range bytes.Lines(data) {
		b, err := parseLine(line)
		switch {
		case err == nil:
			take(b)
		case len(bytes.TrimSpace(line)) > 0:
			skipped++
		}
	}
	return skipped
}

// maxLine is more than any record has.
const maxLine = 1024

// parseLine reads a record of PortSentry 1.2 as it stands in a file.
func parseLine(line []byte) (logline.Blocked, error) {
	if len(line) > maxLine {
		return logline.Blocked{}, errors.New("too long")
	}
	return logline.ParseBlocked(string(bytes.TrimRight(line, "\r\n")))
}

// unreadable returns an error if lines are none of the records of PortSentry 1.2.
func unreadable(lines int) error {
	switch lines {
	case 0:
		return nil
	case 1:
		return errors.New("a line is no record of PortSentry 1.2")
	}
	return fmt.Errorf("%d lines are no records of PortSentry 1.2", lines)
}
