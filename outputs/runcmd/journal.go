package runcmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
)

// A journal remembers for which bans the commands have run, so that a module
// that is started again runs none a second time: the rules that they made are
// still there, and twice the rule would be lifted once. They are gone once the
// machine was down, or the container, and then the commands have to run again. So
// what the journal says of rules holds for one boot and one network namespace.
//
// That is also why nothing is synced to disk: what a crash of the machine can
// take from the journal, it has made untrue as well. Between the end of a command
// and its record a kill of the module still makes a command run twice.
type journal struct {
	path  string // empty: nothing is remembered
	epoch string
	lines int  // in the file
	fault bool // it could not be written
}

// A record is a line of the journal: the state of one source, which replaces
// what was said of it before.
type record struct {
	Source netip.Prefix `json:"source"`
	Held   bool         `json:"held,omitempty"` // the ban is in force, or may be
	Told   bool         `json:"told,omitempty"` // the command beside the ban has run
	Undo   []string     `json:"undo,omitempty"` // lifts the ban
}

// A header is the first line.
type header struct {
	Epoch string `json:"epoch"`
}

// maxJournal bounds what is read.
const maxJournal = 512 << 20

// openJournal returns the journal in dir, which may be empty, and what it says.
func openJournal(dir string) (*journal, map[netip.Prefix]record, error) {
	if dir == "" {
		return &journal{}, nil, nil
	}
	epoch, err := currentEpoch()
	if err != nil {
		return nil, nil, err
	}
	j := &journal{path: filepath.Join(dir, "bans"), epoch: epoch}
	info, err := os.Stat(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j, nil, j.rewrite(nil)
	case err != nil:
		return nil, nil, fmt.Errorf("journal of bans: %w", err)
	case info.Size() > maxJournal:
		return nil, nil, fmt.Errorf("journal of bans: %s has more than %d MiB; remove it", j.path, maxJournal>>20)
	}
	text, err := os.ReadFile(j.path)
	if err != nil {
		return nil, nil, fmt.Errorf("journal of bans: %w", err)
	}
	records := parseJournal(text, epoch)
	return j, records, j.rewrite(records)
}

// currentEpoch names this boot of the machine and our network namespace.
func currentEpoch() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("find out whether the machine was restarted: %w", err)
	}
	network, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "", fmt.Errorf("find out whether the network is another: %w", err)
	}
	return string(bytes.TrimSpace(boot)) + " " + network, nil
}

// parseJournal returns what is said of each source. It stops at what it cannot
// read: a kill in the middle of a write leaves the last line unfinished.
func parseJournal(text []byte, epoch string) map[netip.Prefix]record {
	records := make(map[netip.Prefix]record)
	var h header
	first := true
	for line := range bytes.Lines(text) {
		if first {
			if err := json.Unmarshal(line, &h); err != nil {
				return records
			}
			first = false
			continue
		}
		var r record
		if err := json.Unmarshal(line, &r); err != nil || !r.Source.IsValid() {
			return records
		}
		if h.Epoch != epoch {
			r.Held, r.Undo = false, nil
		}
		if r.Held || r.Told {
			records[r.Source] = r
		} else {
			delete(records, r.Source)
		}
	}
	return records
}

// rewrite makes records all that the journal says.
func (j *journal) rewrite(records map[netip.Prefix]record) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	err := encoder.Encode(header{j.epoch})
	for _, r := range records {
		err = errors.Join(err, encoder.Encode(r))
	}
	fresh := j.path + ".new"
	if err == nil {
		err = os.WriteFile(fresh, text.Bytes(), 0o600)
	}
	if err == nil {
		err = os.Rename(fresh, j.path)
	}
	if err != nil {
		return fmt.Errorf("journal of bans: %w", err)
	}
	j.lines = len(records)
	return nil
}

// add notes the state of a source. A journal that cannot be written is logged
// once: the bans are in force all the same.
func (j *journal) add(r record) {
	if j.path == "" {
		return
	}
	err := j.append(r)
	if err != nil && !j.fault {
		slog.Error("journal of bans cannot be written; commands will run again after a restart", "error", err)
	}
	j.fault = err != nil
}

func (j *journal) append(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = file.Write(append(line, '\n'))
	j.lines++
	return errors.Join(err, file.Close())
}

// slack is how many lines the journal may have that say nothing any more, beyond
// as many as say something.
const slack = 1000

// isLong reports whether it is time to rewrite the journal, of which so many
// lines say something.
func (j *journal) isLong(live int) bool { return j.path != "" && j.lines > 2*live+slack }
