package logfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errFull = errors.New("full")

// A budget is a writer that takes as many bytes as its budget has left.
type budget struct {
	got  bytes.Buffer
	left int
}

func (w *budget) Write(b []byte) (int, error) {
	n := min(len(b), w.left)
	w.left -= n
	w.got.Write(b[:n])
	if n < len(b) {
		return n, errFull
	}
	return n, nil
}

func TestStream(t *testing.T) {
	// Each step gives the writer more budget and appends a batch.
	type step struct {
		budget int
		batch  string
		taken  bool
		got    string // by the writer, so far
	}
	tests := map[string][]step{
		"enough room": {
			{100, "one\ntwo\n", true, "one\ntwo\n"},
		},
		"no room": {
			{0, "one\n", false, ""},
			{100, "one\n", true, "one\n"},
		},
		"cut within a record": {
			{6, "one\ntwo\n", true, "one\ntw"},
			{0, "three\n", false, "one\ntw"},
			{100, "three\n", true, "one\ntwo\nthree\n"},
		},
		"cut between records": {
			{4, "one\ntwo\n", true, "one\n"},
			{100, "three\n", true, "one\ntwo\nthree\n"},
		},
		"cut again and again": {
			{1, "one\ntwo\n", true, "o"},
			{1, "three\n", false, "on"},
			{4, "three\n", false, "one\ntw"},
			{3, "three\n", true, "one\ntwo\nt"},
			{0, "", false, "one\ntwo\nt"},
			{9, "", true, "one\ntwo\nthree\n"},
		},
		"room for just the rest": {
			{6, "one\ntwo\n", true, "one\ntw"},
			{2, "three\n", false, "one\ntwo\n"},
			{100, "three\n", true, "one\ntwo\nthree\n"},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			w := new(budget)
			s := NewStream(w)
			for i, step := range steps {
				w.left += step.budget
				err := s.Append([]byte(step.batch))
				if taken := err == nil; taken != step.taken || w.got.String() != step.got {
					t.Errorf("step %d: Append(%q) = %v, writer has %q; want taken %v, writer %q",
						i, step.batch, err, &w.got, step.taken, step.got)
				}
			}
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

func TestStreamCloseSaysWhatIsStuck(t *testing.T) {
	s := NewStream(&budget{left: 1})
	if err := s.Append([]byte("one\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, errFull) {
		t.Errorf("Close = %v, want %v", err, errFull)
	}
}

func TestStreamToAClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := NewStream(w)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Append([]byte("one\n")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("Append = %v, want %v", err, unix.EPIPE)
		}
	}
}

// A reader that stands still costs a second a batch, and gets all of it, once,
// when it goes on.
func TestStreamToAFullPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// Standard output is a blocking descriptor; Fd makes w one, too.
	w.Fd()
	s := NewStream(w)
	var want strings.Builder
	for first := 0; ; first += 50 {
		b := batch(first, 50)
		began := time.Now()
		err := s.Append([]byte(b))
		if took := time.Since(began); took > 10*patience {
			t.Fatalf("Append took %v", took)
		}
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("Append = %v, want %v", err, os.ErrDeadlineExceeded)
			}
			break
		}
		want.WriteString(b)
	}
	read := make(chan string)
	go func() {
		all, _ := io.ReadAll(r)
		read <- string(all)
	}()
	for _, step := range []func() error{s.Close, w.Close} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-read; got != want.String() {
		t.Errorf("the reader got %d bytes, want %d:\n%s", len(got), want.Len(), got)
	}
}

// stdoutTest tells the re-executed test binary to write to its standard output.
const stdoutTest = "PORTSNARE_LOGFILE_STDOUT"

// The Go runtime ends a process that writes to a broken standard output, unless
// the write avoids os.File.Write.
func TestStreamToBrokenStandardOutput(t *testing.T) {
	if os.Getenv(stdoutTest) != "" {
		if err := NewStream(os.Stdout).Append([]byte("one\n")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("Append = %v, want %v", err, unix.EPIPE)
		}
		os.Stdout = os.Stderr // the verdict of the test must not break, too
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), stdoutTest+"=1")
	cmd.Stdout = w
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("writing to a broken standard output: %v\n%s", err, &stderr)
	}
}

func TestStreamAllocatesNothing(t *testing.T) {
	s := NewStream(io.Discard)
	records := []byte(batch(0, 50))
	if n := testing.AllocsPerRun(100, func() { _ = s.Append(records) }); n != 0 {
		t.Errorf("%v allocations a batch, want none", n)
	}
}
