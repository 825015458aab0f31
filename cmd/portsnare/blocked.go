package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/blockfile"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

const blockFiles = `FILE is a file of blocked sources as PortSentry 2 keeps it (portsentry2), or as
PortSentry 1.2 does (portsentry1); which one its content shows. What can be read
of a damaged file is printed all the same, and the exit status is 1.`

func newBlocked() *cobra.Command {
	blocked := &cobra.Command{
		Use:   "blocked",
		Short: "Show and convert PortSentry's files of blocked sources",
		Long:  "Show and convert PortSentry's files of blocked sources.\n\n" + blockFiles,
		Args:  cobra.NoArgs,
		RunE:  showHelp,
	}
	blocked.AddCommand(newBlockedShow(), newBlockedConvert())
	return blocked
}

func newBlockedShow() *cobra.Command {
	var asJSON bool
	show := &cobra.Command{
		Use:   "show FILE",
		Short: "List the sources in a file of blocked sources",
		Long:  "List the sources in a file of blocked sources, each once and on a line of its own.\n\n" + blockFiles,
		Example: `  portsnare blocked show /tmp/portsentry.blocked
  portsnare blocked show --json /var/lib/portsentry/portsentry.blocked.tcp`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			list, _, damage := readBlocked(files[0])
			appendSource := appendAddress
			if asJSON {
				appendSource = appendJSON
			}
			return errors.Join(damage, printBlocked(cmd.OutOrStdout(), list.Blocked, appendSource))
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per source, with all that its record says")
	return show
}

// blockedConversion is what the options of a conversion choose.
type blockedConversion struct {
	to     conf.BanFileFormat
	output string
}

func newBlockedConvert() *cobra.Command {
	var o blockedConversion
	convert := &cobra.Command{
		Use:   "convert --to FORMAT FILE",
		Short: "Print a file of blocked sources in the form of the other PortSentry",
		Long: `Print a file of blocked sources as PortSentry 2 or PortSentry 1.2 keeps it, each
source once.

PortSentry 2 keeps the address alone. PortSentry 1.2's record also has a time, a
protocol and a port, which it never reads: what comes from PortSentry 2 gets the
time when FILE was last written, and TCP and port 1.

` + blockFiles,
		Example: `  portsnare blocked convert --to portsentry2 --output blocked.new portsentry.blocked.tcp
  portsnare blocked convert --to portsentry1 /tmp/portsentry.blocked`,
		Args: o.check,
		RunE: func(cmd *cobra.Command, files []string) error {
			return o.convert(files[0], cmd.OutOrStdout())
		},
	}
	convert.Flags().Func("to", "the `FORMAT` to print: portsentry2 or portsentry1", func(word string) error {
		o.to = conf.BanFileFormat(word)
		if o.to != conf.BanFilePortSentry2 && o.to != conf.BanFilePortSentry1 {
			return errors.New("want portsentry2 or portsentry1")
		}
		return nil
	})
	convert.Flags().StringVar(&o.output, "output", "", "write to `NEW`, which must not exist yet, instead of standard output")
	return convert
}

// check returns an error unless there is one file and a format.
func (o *blockedConversion) check(cmd *cobra.Command, files []string) error {
	if err := cobra.ExactArgs(1)(cmd, files); err != nil {
		return err
	}
	if o.to == "" {
		return errors.New("--to is missing: give portsentry2 or portsentry1")
	}
	return nil
}

// convert reads file and writes what it says in the other format.
func (o *blockedConversion) convert(file string, stdout io.Writer) error {
	if o.output == "" && o.to == conf.BanFilePortSentry2 && isTerminal(stdout) {
		return errors.New("a list of PortSentry 2 is not for a terminal; use --output")
	}
	list, written, damage := readBlocked(file)
	if list.Format == conf.BanFilePortSentry2 {
		complete(list.Blocked, written)
	}
	if damage != nil && len(list.Blocked) == 0 {
		return damage
	}
	appendRecord := func(dst []byte, b *logline.Blocked) ([]byte, error) {
		return blockfile.Append(dst, o.to, b), nil
	}
	if o.output == "" {
		return errors.Join(damage, printBlocked(stdout, list.Blocked, appendRecord))
	}
	output, err := os.OpenFile(o.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return errors.Join(damage, err)
	}
	err = printBlocked(output, list.Blocked, appendRecord)
	if err = errors.Join(err, output.Close()); err != nil {
		err = errors.Join(err, os.Remove(o.output))
	}
	return errors.Join(damage, err)
}

// isTerminal reports whether w is one: nothing else has a size in characters.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// readBlocked returns what the file says and when it was last written. The error
// names the file; what there is to read of a damaged one is returned with it.
func readBlocked(path string) (list blockfile.List, written time.Time, err error) {
	file, err := os.Open(path)
	if err != nil {
		return list, written, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return list, written, err
	}
	list, err = blockfile.Read(file)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return list, info.ModTime(), err
}

// complete gives records of PortSentry 2 what PortSentry 1.2's have to have. Port
// 0 would not be read again; 1 is where PortSentry's lists of ports begin.
func complete(records []logline.Blocked, at time.Time) {
	for i := range records {
		records[i].At, records[i].Proto, records[i].Port = at, detector.TCP, 1
	}
}

// printBlocked writes the records as appendRecord puts them.
func printBlocked(w io.Writer, records []logline.Blocked, appendRecord func([]byte, *logline.Blocked) ([]byte, error)) error {
	var text []byte
	for i := range records {
		var err error
		if text, err = appendRecord(text, &records[i]); err != nil {
			return err
		}
	}
	_, err := w.Write(text)
	return err
}

func appendAddress(dst []byte, b *logline.Blocked) ([]byte, error) {
	return append(b.Source.AppendTo(dst), '\n'), nil
}

// A blockedSource is what a record says of a source. What PortSentry 2 does not
// keep is left out.
type blockedSource struct {
	Source netip.Addr `json:"source"`
	At     time.Time  `json:"at,omitzero"`
	Host   string     `json:"host,omitempty"`
	Proto  string     `json:"proto,omitempty"`
	Port   uint16     `json:"port,omitempty"`
}

func appendJSON(dst []byte, b *logline.Blocked) ([]byte, error) {
	s := blockedSource{Source: b.Source, At: b.At, Host: b.Host, Port: b.Port}
	if b.Proto != 0 {
		s.Proto = strings.ToLower(b.Proto.String())
	}
	line, err := json.Marshal(s)
	if err != nil {
		return dst, err
	}
	return append(append(dst, line...), '\n'), nil
}
